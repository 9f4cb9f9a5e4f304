"""``python -m skelops``."""

from skelops.cli import main

raise SystemExit(main())
