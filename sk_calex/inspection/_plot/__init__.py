"""Pictures of what a cascade costs, gets right, and was trained on.

matplotlib is imported where a picture is drawn, so the package works without it.
"""
