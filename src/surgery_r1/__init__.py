"""An open Surgery-R1: reasoning models for surgical visual question answering with localized answers."""

__version__ = "0.1.0"
