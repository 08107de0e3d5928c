"""LightningModules: supervised fine-tuning, reward models, and policies."""

from ipvrm_lightning.modules.distrl import DistRLModule
from ipvrm_lightning.modules.ipvrm import IPVRMModule
from ipvrm_lightning.modules.policy import PolicyModule
from ipvrm_lightning.modules.sft import SFTModule

__all__ = ["DistRLModule", "IPVRMModule", "PolicyModule", "SFTModule"]
