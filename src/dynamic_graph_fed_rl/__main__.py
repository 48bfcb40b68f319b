"""`python -m dynamic_graph_fed_rl` is `dgfrl`."""

from dynamic_graph_fed_rl.cli import main

if __name__ == "__main__":
    main()
