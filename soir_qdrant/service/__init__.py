"""The service: a REST interface and the page on which one draws a box and finds the thing."""
