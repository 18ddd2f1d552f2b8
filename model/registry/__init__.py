"""What a registered model needs of this package: the file that MLflow keeps beside its weights imports this alone.

Promised: files inside models that are registered name these two, so they stay, and take and give what they do now.
"""

from rwkvfusion.model.registry.encoded import fuse_row as fuse_row
from rwkvfusion.model.registry.encoded import load_fuser as load_fuser
