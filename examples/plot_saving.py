"""
Saving and loading
==================

Three ways, from the most convenient to the safest. Pickle and joblib keep everything, but loading runs whatever code
the file asks for, so load only files that you trust. ``save_params`` keeps the weights, optimizer and history; loading
reads numbers only. For a file from a stranger, keep the weights as safetensors and the rest of a pipeline by skops,
which names every type in a file and builds none that you have not allowed. The last way needs
``pip install skops safetensors`` (the extra ``saving``). skops knows no tensors of torch, hence two files. The script
checks that predictions are equal to the last bit every time.
"""

import pickle
import tempfile
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import skops.io
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklm import LMClassifier

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
y = y.map({0: "malignant", 1: "benign"})
net = LMClassifier(module__hidden_layer_sizes=(3,), alpha=1.0, ftol=1e-4, random_state=0)
pipeline = make_pipeline(StandardScaler(), net).fit(X, y)
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)


def compare(name, other):
    same = np.array_equal(other.predict_proba(X), pipeline.predict_proba(X))
    print(f"{name}: probabilities equal to the last bit: {same}")


# %%
# Pickle or joblib: one line, the whole pipeline. Only for files of your own.
joblib.dump(pipeline, folder / "pipeline.joblib")
compare("joblib", joblib.load(folder / "pipeline.joblib"))

# %%
# ``save_params`` and ``load_params``: weights, optimizer and history, to go on training exactly. The estimator is built
# by your own code; `initialize` needs the sizes that else come from the data, and a classifier its labels.
fitted = pipeline[-1]
files = {f"f_{part}": str(folder / f"{part}.pt") for part in ("params", "optimizer", "history")}
fitted.save_params(**files)
other = clone(net).set_params(module__n_features_in=X.shape[1], module__n_outputs=1).initialize()
other.load_params(**files)
scaled, longer = pipeline[:-1].transform(X), joblib.load(folder / "pipeline.joblib")[-1]
for model in (other, longer):
    model.partial_fit(scaled, y)
same = all(map(torch.equal, other.module_.parameters(), longer.module_.parameters()))
print(f"save_params: after more training, weights equal to the last bit: {same}")

# %%
# The safe way, saving: the weights alone as safetensors; by skops the other steps, the unfitted estimator and what it
# has learned beside the weights.
LEARNED = ("n_features_in_", "feature_names_in_", "n_outputs_", "classes_")
learned = {name: getattr(fitted, name) for name in LEARNED if hasattr(fitted, name)}
skops.io.dump({"before": pipeline[:-1], "net": clone(fitted), "learned": learned}, folder / "rest.skops")
fitted.save_params(f_params=str(folder / "weights.safetensors"), use_safetensors=True)

# %%
# Loading: look at what the file wants to build, and allow just that. numpy's and scikit-learn's types need no leave.
ALLOWED = ["sklm.estimators.LMClassifier", "sklm.modules.MLP"]
print("to be allowed:", skops.io.get_untrusted_types(file=folder / "rest.skops"))
rest = skops.io.load(folder / "rest.skops", trusted=ALLOWED)
loaded = rest["net"]
for name, value in rest["learned"].items():
    setattr(loaded, name, value)
loaded.initialize()
loaded.load_params(f_params=str(folder / "weights.safetensors"), use_safetensors=True)
compare("skops and safetensors", make_pipeline(rest["before"], loaded))


# %%
# What a hostile file does: it asks for a call. Pickle makes it, the others refuse.
class Hostile:
    def __reduce__(self):
        return print, ("  code from the file is running",)


torch.save(Hostile(), folder / "hostile.pt")
print("pickle:")
pickle.loads(pickle.dumps(Hostile()))  # noqa: S301
for use_safetensors in (False, True):
    try:
        other.load_params(f_params=str(folder / "hostile.pt"), use_safetensors=use_safetensors)
    except Exception as error:
        print(f"load_params, use_safetensors={use_safetensors}: {type(error).__name__}")
try:
    skops.io.load(folder / "rest.skops", trusted=[])
except skops.io.exceptions.UntrustedTypesFoundException as error:
    print(f"skops, nothing allowed: {type(error).__name__}")

# %%
# Sizes. A pickle also holds optimizer, history and, for `LMRegressor`, training rows for the standard errors, which the
# other two ways leave behind.
FILES = {
    "joblib": ["pipeline.joblib"],
    "save_params": ["params.pt", "optimizer.pt", "history.pt"],
    "skops and safetensors": ["rest.skops", "weights.safetensors"],
}
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for way, names in FILES.items():
    bars = axes.barh(names, [(folder / name).stat().st_size / 1024 for name in names], label=way)
    axes.bar_label(bars, fmt="%.1f", padding=3)
figure.legend(loc="outside right upper", frameon=False)
axes.set(xlabel="KiB", title="Files of one fit")
axes.margins(x=0.2)
axes.invert_yaxis()
plt.show()

# %%
# Takeaway: pickle among yourselves; for anything that travels, numbers in safetensors, settings in code or skops.
