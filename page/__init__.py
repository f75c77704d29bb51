"""The page on which people edit faces: what app.py shows."""
