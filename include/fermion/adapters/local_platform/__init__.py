"""The supervised embedded installation: Postgres and Airflow's components as children of one supervisor on this machine.

``installation.LocalPlatform`` is the door. Everything it makes is under the state folder (``run/``). It isolates nothing and
is no init system: after a reboot somebody calls ``up`` again. The platform itself never needs this package; a production
installation runs the same programs under its own supervisor.
"""
