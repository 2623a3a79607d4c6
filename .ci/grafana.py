"""Check deploy/grafana/pipeline.json against Grafana's own types: each name is known, each value is one that it takes.

    python .ci/grafana.py DASHBOARD FOLDER

npm puts the types (`@grafana/schema`) and TypeScript into the folder. An unknown name is an error to TypeScript only in
a literal, so the dashboard becomes one. Without npm nothing is checked, and the last line says so.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("@grafana/schema@13.2.3", "typescript@5.9.3")
PANELS = {"row": "Plain<RowPanel>", "stat": "Drawn<Stat, never>", "timeseries": "Drawn<Series, SeriesField>"}
# JSON has the value of an enumeration, never its name
HEAD = """import type {{ Dashboard, Panel, RowPanel }} from '@grafana/schema';
import type {{ Options as Stat }} from '{types}/stat/panelcfg/x/types.gen';
import type {{ FieldConfig as SeriesField, Options as Series }} from '{types}/timeseries/panelcfg/x/types.gen';
type Plain<T> = T extends string ? `${{T}}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? {{ [K in keyof T]: Plain<T[K]> }} : T;
type Fields = NonNullable<Panel['fieldConfig']>;
type Drawn<O, C> = Plain<Omit<Panel, 'options' | 'fieldConfig'> & {{ options: O; fieldConfig: {{
  defaults: Omit<Fields['defaults'], 'custom'> & {{ custom?: C }}; overrides: Fields['overrides'] }} }}>;
"""
SETTINGS = {
    "compilerOptions": {
        "noEmit": True, "strict": True, "skipLibCheck": True, "moduleResolution": "bundler", "module": "esnext",
        "target": "es2022", "types": [],
    },
    "files": ["dashboard.ts"],
}  # fmt: skip


def main() -> int:
    """Check; return the exit code."""
    dashboard, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    npm = shutil.which("npm")
    if npm is None:
        print("there is no npm: the dashboard is not checked against Grafana's types")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, *PACKAGES]
    subprocess.run(install, check=True, timeout=300)
    panels = dashboard.pop("panels")
    typed = [("Plain<Dashboard>", dashboard), *((PANELS[one["type"]], one) for one in panels)]
    lines = [f"export const _{n}: {kind} = {json.dumps(one, indent=1)};\n" for n, (kind, one) in enumerate(typed)]
    head = HEAD.format(types="./node_modules/@grafana/schema/dist/types/raw/composable")
    (folder / "dashboard.ts").write_text(head + "".join(lines))
    (folder / "tsconfig.json").write_text(json.dumps(SETTINGS))
    checked = subprocess.run([folder / "node_modules" / ".bin" / "tsc", "--project", folder], timeout=300, check=False)
    if not checked.returncode:
        print(f"{len(panels)} panels fit {PACKAGES[0]}")
    return checked.returncode


if __name__ == "__main__":
    sys.exit(main())
