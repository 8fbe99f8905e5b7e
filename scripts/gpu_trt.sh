#!/usr/bin/env bash
# Runs a program of this checkout with the Python that a packed TensorRT brought along.
# usage: gpu_trt.sh TRT SITE PROGRAM [ARGUMENTS]      TRT: where unpack.sh put it; SITE: where gpu_wheels.py unpacked
# env.sh sets PYTHONHOME and PYTHONPATH, with which no other Python starts: they stay in this process. The system's
# Python, if it is there, is asked for NVRTC first, which the packed one may lack.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
checkout=$(cd "$(dirname "$0")/.." && pwd) trt=$1 site=$(cd "$2" && pwd)
[ -f "$trt/env.sh" ] || { echo "error: no env.sh in $trt; unpack TensorRT there" >&2; exit 2; }
shift 2
ask='import importlib.util as u
for name in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
    try: print(u.find_spec(name).submodule_search_locations[0] + "/lib")
    except (ImportError, AttributeError): pass'
nvrtc=$(python3 -c "$ask" 2>/dev/null | paste -sd: || true)
. "$trt/env.sh"
export PYTHONPATH=$checkout:$PYTHONPATH:$site
export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/local/cuda/lib64${nvrtc:+:$nvrtc}
exec "$TRT_PYTHON" "$@"
