"""Minecraft Java edition clients: what they say first, their status, their logins, and how they are turned away."""
