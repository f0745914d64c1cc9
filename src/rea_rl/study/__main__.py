"""`python -m rea_rl.study`, see `rea_rl.study.run`."""

from rea_rl.study.run import main

if __name__ == "__main__":
    main()
