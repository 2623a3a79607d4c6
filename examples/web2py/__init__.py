"""A shop in web2py: `make example-web2py`. The application is in `shop/`, as it would stand in `applications/`."""
