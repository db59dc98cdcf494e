"""Fits named coefficients to measured runs, and keeps what holds on families left out of it."""
