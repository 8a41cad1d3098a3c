"""Measures the activation ranges of a denoiser, step by step."""

from halftone.calibration.run import calibrate
from halftone.calibration.settings import CalibrationResult, CalibrationSettings

__all__ = ["CalibrationResult", "CalibrationSettings", "calibrate"]
