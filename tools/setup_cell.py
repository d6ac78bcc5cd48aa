# Set-up. On your own machine this only makes sure that the library is found. On Colab it fetches
# the course and installs what Colab lacks; Colab's own torch and numpy stay as they are.
import importlib.util, subprocess, sys
from pathlib import Path

REPO = "OWNER/NAME"
if "google.colab" in sys.modules:
    root = Path("/content") / REPO.split("/")[1]
    if not root.exists():
        url = f"https://github.com/{REPO}"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", url, str(root)], check=True)
    subprocess.run([sys.executable, str(root / "tools" / "colab_install.py")], check=True)
    importlib.invalidate_caches()
else:
    root = next((p for p in Path.cwd().parents if (p / "gsgen_lib").is_dir()), None)
if root and importlib.util.find_spec("gsgen_lib") is None:
    sys.path.insert(0, str(root))
if importlib.util.find_spec("gsgen_lib") is None:
    raise ModuleNotFoundError("gsgen_lib was not found: start this notebook with `make lab`")
