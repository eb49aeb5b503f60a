"""The report: one static HTML file out of run folders and score folders, and one of what RFT has recorded. It shows
metrics and computes none."""

from surgery_r1.report.page import write_report
from surgery_r1.report.rollouts import write_rollout_page

__all__ = ["write_report", "write_rollout_page"]
