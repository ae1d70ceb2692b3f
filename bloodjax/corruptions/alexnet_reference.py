"""AlexNet's balanced errors on BloodMNIST-C: the reference of the relative errors.

Source: medmnistc 0.1.0, `medmnistc/utils/baselines.py` (Apache-2.0), the companion package of
Di Salvo, Doerrich and Ledig, "MedMNIST-C: Comprehensive benchmark and improved classifier
robustness by simulating realistic image corruptions", 2024, arXiv:2406.17536. Images of
224 x 224; each corruption's error is the mean over its five severities.
"""

SOURCE = "medmnistc 0.1.0 (arXiv:2406.17536), AlexNet on BloodMNIST-C, 224 x 224"
SIZE = 224
CLEAN = 0.018369282094266692
CORRUPTED = {
    "pixelate": 0.05975618949678589,
    "jpeg_compression": 0.13976187053705183,
    "defocus_blur": 0.22399795597780647,
    "motion_blur": 0.1845192137218041,
    "brightness_up": 0.06946294328845175,
    "brightness_down": 0.0790077546902872,
    "contrast_up": 0.05215362284240639,
    "contrast_down": 0.07966068499560328,
    "saturate": 0.03478558170020538,
    "stain_deposit": 0.18536119379858546,
    "bubble": 0.12898833684644578,
}
