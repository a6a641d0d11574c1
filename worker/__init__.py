"""Keeps the goods of MoySklad child accounts equal to their main account."""

__version__ = "0.1.0"
