"""``python -m foreshare.runtime.report LOG.npz OUT.html [--baseline B.npz]``."""

import sys

from .html import main

sys.exit(main())
