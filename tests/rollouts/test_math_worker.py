from __future__ import annotations

import pytest

from ipvrm_lightning.rollouts.answers import final_answer
from ipvrm_lightning.rollouts.math_worker import Judgement, judge
from ipvrm_lightning.rollouts.units import split_unit


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        # what is counted, in words that no list holds
        ("18 dollars", "18"),
        ("$18.00 dollars per day", "18"),
        ("18 eggs", "18"),
        ("18 years old", "18"),
        ("3/4 of the cake", "3/4"),
        ("1/2 cup", "0.5"),
        (r"\text{18 cm}", "18"),
        ("about 18 cm", "18"),
        ("6 * 3 = 18 apples", "18"),
        ("≈ 18", "18"),
        ("option (B)", "B"),
        (r"3\frac{1}{4} inches", r"\frac{13}{4}"),
        ("18", "18 dollars"),
        ("9.8", "9.8 m/s^2"),
        ("18 more apples", "18"),
        ("18 times", "18"),
        ("3 1/2 hours", "3.5"),
        ("2.5 million people", "2500000"),
        (r"3 \times 10^8 m/s", "3e8"),
        # MATH's thousands, other currencies, ordinals
        (r"10,\!000", "10000"),
        ("1234567.5", r"\$1,\!234,\!567.50"),
        ("500", "Rs. 500"),
        ("Rs.500/-", "500"),
        ("€500", "500 euros"),
        (r"US\$500", "500"),
        ("5", "5th"),
        ("1 : 2 : 3", "1:2:3"),
        # units behind a number, and behind what is more than a number
        ("18 km/h", "18"),
        ("18 m/s^2", "18"),
        ("18 cm²", "18"),
        (r"18\ \mathrm{m} / \mathrm{s}", "18"),
        (r"36π square units", r"36\pi"),
        (r"4\sqrt{3} cm", r"4\sqrt3"),
        ("18 m", "18"),
        (r"18\text{ N}\cdot\text{m}", "18"),
        ("(3x+2) cm", "2 + 3x"),
        ("18 grams", "18 g"),
        ("18 m", "d = 18 meters"),
        # a letter at the end is a variable
        ("m \\cdot 6", "$6m$"),
        ("0.5 m", r"\frac{m}{2}"),
        (r"9.25\text{ m}", r"\frac{37}{4} m"),
        (r"\frac{t}{m}", r"\frac{1}{m} t"),
        ("cx + d", "f(x) = cx + d"),
        ("c, c-3, c-4", "-3 + c, -4 + c, c"),
        # nor is it a unit what is all there is behind a sign
        ("-mg", "-mg"),
        ("m g", "T = mg"),
        (r"mg\mu", r"\mu mg"),
        (r"-\text{apples}", r"-\text{apples}"),
        (r"\frac{5 percent}{2}", r"\frac{5 percent}{2}"),
        # small numbers, to five digits
        ("0.00000277779", "2.7778e-6"),
        ("x = 0.0000017700001", "1.77e-6"),
        # parts of a hundred
        ("62.5", "62.5%"),
        (r"62.5\%", "62.5"),
        (r"62.5\text{ percent}", "0.625"),
        (r"33\frac13\%", r"33\frac{1}{3}"),
        # large numbers in words
        ("2.5 million dollars", "2500000"),
        (r"2.5\text{ million}", "2,500,000"),
        # the imaginary unit, however it is written
        (r"1+2i\sqrt{3}", r"1+2\sqrt{3} i"),
        (r"6+9\mathrm{i}", "6+9i"),
        (r"6+9\,i", "6+9i"),
        ("ry - rx(t) + y' = 0", r"y^{\prime}+r y-r x(t)=0"),
        ("y\u2032\u2032 + y", r"y^{\prime \prime}+y"),
        ("I_1 + I_2", "I_2 + I_1"),
        (r"(\gamma-1)(\gamma+1)", r"\gamma^{2}-1"),
        # texts
        (r"\text{infinitely many}", "infinitely many"),
        ("July 4", r"\text{July 4}"),
        ("Ellipse", "ellipse"),
        ("E_1, E_2", "E_{1},E_{2}"),
        ("4210_5", "4210_{5}"),
        # characters
        ("x⁴", "x^4"),
        ("10⁻⁵", "1e-5"),
        ("x₁", "x_1"),
        ("⅔", r"\frac23"),
        ("3⅛", "3.125"),
        ("\uff081\uff0c2\uff09", "(1,2)"),
        ("x∈(5,∞)", "x>5"),
        (r"\approx 5", "5"),
        ("**5**", "5"),
    ],
)
def test_the_same_in_other_words(answer: str, truth: str) -> None:
    assert judge((truth, answer)).correct


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        # a number from the middle of a text that cannot be read
        ("2", r"\hbar \omega(v+1 / 2)-\frac{E_{0}^{2} e^{2}}{2 m \omega^{2}}"),
        (r"\frac{2}{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),
        (r"\frac{2}{3}E_1+\frac{1}{3}E_2", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}"),
        (r"\frac{-10 \pm (\sqrt{545} + 28)}{4}", "28"),
        (r"f(n) = \begin{cases} n & \text{if odd} \\ 0 & \text{otherwise}. \end{cases}", "0"),
        ("f(x)", "f'(x)"),
        ("f''(x)", "f'(x)"),
        ("2y", "y' + y"),
        ("I_6", "I_5"),
        (r"c^{2}(\gamma^{2}-2)", r"c^{2}(\gamma^{2}-1)"),
        (r"\gamma", "0.5772157"),
        (r"\frac{x}{0}", r"\frac{y}{0}"),
        # a variable that is no unit
        ("6", "$6m$"),
        (r"\frac{1}{m}", r"\frac{1}{m} t"),
        ("1-2t", "-1"),
        ("4x-3", "4x-3t"),
        ("3ab", "3"),
        ("2t", "2"),
        ("3i", "3"),
        ("3 sin x", "3"),
        ("3 abc", "3"),
        (r"6+9\mathrm{i}", "15"),
        (r"\mu", r"\mu mg"),
        ("T = kg", "T = mg"),
        # words behind words
        ("A", r"\text{A} \text{ and } \text{C}"),
        (r"\text{A}, \text{B}", r"\text{A}, \text{C}"),
        (r"x = \text{red}", r"x = \text{blue}"),
        (r"\mathrm{H}_2\mathrm{S}", r"\mathrm{H}_2\mathrm{O}"),
        (r"n \text{ is odd}", r"n \text{ is even}"),
        (r"5\text{ dozen}", "5"),
        (r"20\text{ percent decrease}", r"20\text{ percent increase}"),
        ("1:3:2", "1:2:3"),
        # numbers that agree to six places and are another
        ("0.00000178", "1.77e-6"),
        ("0.000001771", "1.77e-6"),
        ("x = 0.00000178", "1.77e-6"),
        ("C = E_{1}", "D = E_{1}"),
        # words that change a number
        (r"5\text{ million}", "5"),
        ("5 million", "5"),
        ("2 and a half", "2"),
        ("12 dozen", "12"),
        ("2 pi", "2"),
        ("6.25", "62.5%"),
        ("4210_6", "4210_{5}"),
        ("2**10", "210"),
    ],
)
def test_another_answer_is_wrong(answer: str, truth: str) -> None:
    assert not judge((truth, answer)).correct


def test_an_answer_is_told_as_it_stands() -> None:
    assert judge((r"\gamma", r"\gamma^2 \text{ m}")).answer == r"\gamma^2"
    assert judge(("18", "18 dollars")).answer == "18"
    assert judge(("18", None)) == Judgement(known=True, correct=False, answer=None)


def test_units_are_parted() -> None:
    assert split_unit(r"5 \text{ m}/\text{s}^2") == ("5", "m s", False)
    assert split_unit("5 m/s") == ("5 ", "m/s", False)
    assert split_unit("5 m") == ("5 ", "m", True)
    assert split_unit("5 apple trees") == ("5 ", "apple trees", False)
    assert split_unit(r"2\pi cm") == (r"2\pi ", "cm", False)
    for whole in (r"2\pi cm trees", "5 m trees", "5 apples or more", r"2\mathrm{e}"):
        assert split_unit(whole) == (whole, "", False)
    for whole in ("", "cm", "x + d", "5 or more", r"\text{cm}", "5 x", "x cm trees", "5 m" + " " * 1000):
        assert split_unit(whole) == (whole, "", False)
    # neither a long text nor one that nearly ends in a unit takes long
    assert not split_unit("a " * 499 + "!").unit


def test_a_full_stop_of_chinese_ends_an_answer() -> None:
    assert final_answer("Answer: 12 teams**。 那么 13") == "12 teams"
