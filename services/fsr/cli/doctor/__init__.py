"""`fsr doctor`: does this machine have what the services need?"""
