"""Every parameter of the manual, declared once; parsing, rules, help."""
