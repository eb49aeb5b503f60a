"""The report: one static HTML file out of run folders and score folders. It shows metrics and computes none."""

from surgery_r1.report.page import write_report

__all__ = ["write_report"]
