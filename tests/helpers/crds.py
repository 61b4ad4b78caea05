"""The fields of custom resources in our manifests. If a manifest has another field, it is misspelt or belongs here.

The schemas of KubeRay, KEDA, cert-manager and the Prometheus operator are in no package, so this file repeats what is
needed of them. Names and types are those of their Go types: KubeRay's ray-operator/apis/ray/v1/rayservice_types.go and
raycluster_types.go; the Prometheus operator's podmonitor_types.go, prometheus_types.go and prometheusrule_types.go in
pkg/apis/monitoring/v1; KEDA's scaledobject_types.go and scaletriggers_types.go in apis/keda/v1alpha1, and its
CPU and Prometheus scalers; cert-manager's types_certificate.go and types_issuer.go in pkg/apis/certmanager/v1. Pod
templates and a scaler's behavior are Kubernetes' own types and are checked as those.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Duration = Annotated[str, Field(pattern=r"^(\d+(ms|[smhdwy]))+$")]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RayGroup(Part):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class RayWorkers(RayGroup):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class RayAuth(Part):
    mode: Literal["token"]


class SecretKey(Part):
    name: str
    key: str


class SecretSource(Part):
    secretKeyRef: SecretKey


class RedisCredential(Part):
    valueFrom: SecretSource


class GcsFaultTolerance(Part):
    redisAddress: str
    redisPassword: RedisCredential


class RayCluster(Part):
    rayVersion: str
    authOptions: RayAuth
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None
    enableInTreeAutoscaling: bool
    headGroupSpec: RayGroup
    workerGroupSpecs: list[RayWorkers]


class RayUpgrade(Part):
    type: Literal["NewCluster", "None"]


class RayService(Part):
    serveConfigV2: str
    rayClusterConfig: RayCluster
    excludeHeadPodFromServeSvc: bool
    upgradeStrategy: RayUpgrade | None = None


class Selector(Part):
    matchLabels: dict[str, str]


class Relabeling(Part):
    sourceLabels: list[str] = []
    targetLabel: str | None = None
    regex: str | None = None
    action: Literal["replace", "keep", "drop", "labeldrop", "labelkeep"] = "replace"


class MetricsEndpoint(Part):
    port: str
    interval: Duration
    relabelings: list[Relabeling] = []
    metricRelabelings: list[Relabeling] = []


class PodMonitor(Part):
    jobLabel: str
    selector: Selector
    podMetricsEndpoints: list[MetricsEndpoint]


class Recording(Part):
    record: str
    expr: str


class Alert(Part):
    alert: str
    expr: str
    duration: Duration | None = Field(None, alias="for")
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(Part):
    name: str
    rules: list[Recording | Alert]


class PrometheusRule(Part):
    groups: list[RuleGroup]


class ScaleTarget(Part):
    name: str


class HpaConfig(Part):
    name: str
    behavior: dict[str, Any]


class Advanced(Part):
    horizontalPodAutoscalerConfig: HpaConfig


class PrometheusQuery(Part):
    serverAddress: str
    query: str
    threshold: str


class Utilization(Part):
    value: str


class CpuTrigger(Part):
    type: Literal["cpu"]
    metricType: Literal["Utilization"]
    metadata: Utilization


class PrometheusTrigger(Part):
    type: Literal["prometheus"]
    name: str
    metricType: Literal["AverageValue", "Value"]
    metadata: PrometheusQuery


class ScaledObject(Part):
    scaleTargetRef: ScaleTarget
    minReplicaCount: int
    maxReplicaCount: int
    pollingInterval: int
    cooldownPeriod: int
    advanced: Advanced
    triggers: list[Annotated[CpuTrigger | PrometheusTrigger, Field(discriminator="type")]]


class IssuerReference(Part):
    name: str
    kind: Literal["Issuer", "ClusterIssuer"]
    group: Literal["cert-manager.io"]


class PrivateKey(Part):
    algorithm: Literal["ECDSA", "RSA", "Ed25519"]
    size: int
    rotationPolicy: Literal["Always", "Never"] | None = None


class Certificate(Part):
    secretName: str
    issuerRef: IssuerReference
    privateKey: PrivateKey
    duration: Duration
    renewBefore: Duration | None = None
    isCA: bool = False
    commonName: str | None = None
    dnsNames: list[str] = []
    usages: list[Literal["client auth", "server auth"]] = []


class CaOfSecret(Part):
    secretName: str


class Issuer(Part):
    selfSigned: dict[str, Any] | None = None
    ca: CaOfSecret | None = None


SPECS: dict[str, tuple[str, type[Part]]] = {
    "RayService": ("ray.io/v1", RayService),
    "PodMonitor": ("monitoring.coreos.com/v1", PodMonitor),
    "PrometheusRule": ("monitoring.coreos.com/v1", PrometheusRule),
    "ScaledObject": ("keda.sh/v1alpha1", ScaledObject),
    "Certificate": ("cert-manager.io/v1", Certificate),
    "Issuer": ("cert-manager.io/v1", Issuer),
}
