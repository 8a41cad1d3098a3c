"""Results as a person wants them: a page to look at, a table for a README, a model card."""

from halftone.report.card import model_card
from halftone.report.html import write_page
from halftone.report.markdown import markdown_table
from halftone.report.page_input import ActivationRange, PageInput, Picture, QuantizationFacts
from halftone.report.sensitivity_page import write_sensitivity_page
from halftone.report.study_page import write_study_page

__all__ = [
    "ActivationRange",
    "PageInput",
    "Picture",
    "QuantizationFacts",
    "markdown_table",
    "model_card",
    "write_page",
    "write_sensitivity_page",
    "write_study_page",
]
