"""web2py, py4web and a browser, served and asked over HTTP."""
