"""Doubles of libraries and devices that this machine may lack."""
