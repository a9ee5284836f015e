"""The maths of Boxwright: torch only. Nothing in this folder imports the host, except its subfolder `host`."""
