"""Attention whose map is changed for chosen heads, rows or keys."""
