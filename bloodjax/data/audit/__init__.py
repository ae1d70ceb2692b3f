"""Finds junk, duplicates, outliers, label conflicts and leakage in labelled images."""

from bloodjax.data.audit.findings import Audit, AuditedImage, Group, audit

__all__ = ["Audit", "AuditedImage", "Group", "audit"]
