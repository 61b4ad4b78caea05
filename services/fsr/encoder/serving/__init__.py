"""How Ray and Ray Serve start, listen and end."""
