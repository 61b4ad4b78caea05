"""The methods Focus-Scan-Refine is compared with, one small file each, behind the same interface."""
