"""What models and runs became, on one page that a person wants to read: HTML in English and Korean, or Markdown."""
