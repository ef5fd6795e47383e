"""Everything outside, kept in memory: the fakes that tests and simulations run on.

They are true fakes: what a port's docstring promises, they do, and the contract suites hold them to it. Beyond the port
each has a few named levers (``advance``, ``exit``, ``lose``) by which a test moves the world.
"""
