"""The Kubernetes manifests against the image, the command line and one another; no cluster is needed."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from container_commands import check_command

from vlatrack.spec.training import TrainSpec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for name in ("mlflow", "training")
    for manifest in yaml.safe_load_all((FOLDER / "base" / f"{name}.yaml").read_text())
]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


JOB, MLFLOW = one("Job", "vlatrack-training")["spec"], one("Deployment", "mlflow")["spec"]
POSTGRES = one("StatefulSet", "mlflow-postgres")["spec"]


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each pod and its container."""
    for owner in (JOB, MLFLOW, POSTGRES):
        (container,) = owner["template"]["spec"]["containers"]
        yield owner["template"]["spec"], container


TRAINER, SERVER, DATABASE = (container for _, container in pods())


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_no_pod_may_more_than_it_needs() -> None:
    for pod, container in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert not pod["enableServiceLinks"]  # MLFLOW_PORT=tcp://… would confuse MLflow
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_keys_come_from_secrets() -> None:
    for _, container in pods():
        for name, value in environment(container).items():
            assert ("secretKeyRef" in value) == bool(re.search("PASSWORD|KEY", name)), name
    assert not any(manifest["kind"] == "Secret" for manifest in MANIFESTS)
    password = {"secretKeyRef": {"name": "vlatrack-postgres", "key": "password"}}
    assert environment(SERVER)["PGPASSWORD"] == environment(DATABASE)["POSTGRES_PASSWORD"] == password
    assert environment(TRAINER)["WANDB_API_KEY"]["secretKeyRef"]["optional"]


def test_every_mounted_volume_and_every_claim_exists() -> None:
    claims = {manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "PersistentVolumeClaim"}
    claimed = set()
    for (pod, container), more in zip(pods(), ([], [], POSTGRES["volumeClaimTemplates"]), strict=True):
        declared = {volume["name"] for volume in pod["volumes"]} | {claim["metadata"]["name"] for claim in more}
        assert {mount["name"] for mount in container["volumeMounts"]} == declared
        claimed |= {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert claimed == claims


def test_services_and_policies_find_their_pods() -> None:
    labels = {
        "mlflow": MLFLOW["template"]["metadata"]["labels"],
        "mlflow-postgres": POSTGRES["template"]["metadata"]["labels"],
    }
    for name, pod in labels.items():
        service = one("Service", name)["spec"]
        assert service["selector"].items() <= pod.items()
        container = SERVER if name == "mlflow" else DATABASE
        assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    policy = one("NetworkPolicy", "mlflow-postgres")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels["mlflow-postgres"].items()
    (allowed,) = policy["ingress"][0]["from"]
    assert allowed["podSelector"]["matchLabels"].items() <= labels["mlflow"].items()
    assert MLFLOW["selector"]["matchLabels"].items() <= labels["mlflow"].items()
    assert POSTGRES["serviceName"] == "mlflow-postgres"


def test_the_servers_are_started_as_by_compose() -> None:
    assert DATABASE["image"] in COMPOSE["postgres"]["image"]
    assert SERVER["args"] == [word.replace("@postgres/", "@mlflow-postgres/") for word in COMPOSE["mlflow"]["command"]]
    assert TRAINER["image"] == SERVER["image"] == COMPOSE["trainer"]["image"]
    assert environment(TRAINER)["MLFLOW_TRACKING_URI"] == COMPOSE["trainer"]["environment"]["MLFLOW_TRACKING_URI"]


def test_a_training_whose_pod_is_replaced_goes_on_and_a_mistake_ends_it() -> None:
    pod = JOB["template"]["spec"]
    named = environment(TRAINER)["JOB"]["fieldRef"]["fieldPath"]
    assert named == "metadata.labels['batch.kubernetes.io/job-name']"  # which Kubernetes sets
    assert TRAINER["args"][-1] == "--job=$(JOB)"
    check_command([word.replace("$(JOB)", "vlatrack-training") for word in TRAINER["args"]])
    assert JOB["podReplacementPolicy"] == "Failed"  # never two at once
    assert pod["restartPolicy"] == "Never"  # as podFailurePolicy wants it
    assert pod["terminationGracePeriodSeconds"] > 2 * TrainSpec.model_fields["grace_s"].default
    mistake, disruption = JOB["podFailurePolicy"]["rules"]
    assert (mistake["action"], mistake["onExitCodes"]["values"]) == ("FailJob", [2])
    assert mistake["onExitCodes"]["containerName"] == TRAINER["name"]
    assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(("overlay", "gpus"), [("base", None), ("gpu", "1")])
def test_kubectl_builds_every_folder(overlay: str, gpus: str | None) -> None:
    build = ["kubectl", "kustomize", str(FOLDER / overlay)]
    built = list(yaml.safe_load_all(subprocess.run(build, capture_output=True, text=True, check=True).stdout))
    assert len(built) == len(MANIFESTS)
    (job,) = [manifest for manifest in built if manifest["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "vlatrack:latest"
    assert container["args"] == TRAINER["args"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
