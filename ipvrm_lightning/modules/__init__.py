"""LightningModules: `SFTModule` and `IPVRMModule`."""

from ipvrm_lightning.modules.ipvrm import IPVRMModule
from ipvrm_lightning.modules.sft import SFTModule

__all__ = ["IPVRMModule", "SFTModule"]
