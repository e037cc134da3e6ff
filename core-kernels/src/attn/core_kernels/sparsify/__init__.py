"""Attention over chosen blocks or tokens only."""
