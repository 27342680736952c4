import sys

from exlstm.cli import main

sys.exit(main(prog="python -m exlstm"))
