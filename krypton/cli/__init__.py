"""The command line: a face of the session, like `web`, and nothing that a program could not do with `krypton.connect()`.

main.py reads the arguments and gives exit statuses, runner.py runs scripts, shell.py is the interactive shell (complete.py
knows what may come next), demo.py shows it all on the shipped model; screen.py, render.py and progress.py are what is seen.
"""
