{{- /* Labels of every pod, and selectors of all pods of this release. */ -}}
{{- define "fsr.instance" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Selector of a tier's pods. Takes the root and the tier. */ -}}
{{- define "fsr.component" -}}
{{ include "fsr.instance" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* Selector of the pods of gateway or decoder, as their Deployment has it. */ -}}
{{- define "fsr.selector" -}}
{{ include "fsr.component" . }}
app.kubernetes.io/name: fsr-{{ index . 1 }}
{{- end }}

{{- /* Name, namespace and labels of an object. Takes the root, and the name after that of the release. */ -}}
{{- define "fsr.metadata" -}}
{{- $root := index . 0 -}}
name: {{ $root.Release.Name }}{{ with index . 1 }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "fsr.instance" $root | nindent 2 }}
  app.kubernetes.io/part-of: fsr
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* An image. Takes the root, the key of its digest, and its name. */ -}}
{{- define "fsr.image" -}}
{{- $images := (index . 0).Values.images -}}
{{- with $images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ index . 2 }}
{{- with index $images.digests (index . 1) }}@{{ . }}{{ else }}:{{ $images.tag | default (index . 0).Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Fields of every container after its image. */ -}}
{{- define "fsr.container" -}}
{{- with .Values.images.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
envFrom:
  - configMapRef: {name: {{ include "fsr.model" . }}}
{{- end }}

{{- /* Fields of every pod. Takes the root, and the values of `pod`. */ -}}
{{- define "fsr.pod" -}}
{{- with (index . 0).Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with index . 1 }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* CPU, memory and GPUs of a container. Takes its values, and the number of GPUs. */ -}}
{{- define "fsr.resources" -}}
{{- $gpus := int (index . 1) -}}
{{- $gpu := ternary (dict "nvidia.com/gpu" $gpus) dict (gt $gpus 0) -}}
{{- range $kind := list "requests" "limits" }}
{{ $kind }}: {{ merge (dict) (index (index $ 0) $kind) $gpu | toJson }}
{{- end }}
{{- end }}

{{- /* The ConfigMap's name contains a hash of its data, so that a change restarts every pod. */ -}}
{{- define "fsr.model" -}}
{{ .Release.Name }}-model-{{ include "fsr.settings" . | sha256sum | trunc 10 }}
{{- end }}

{{- /* Variables of all pods, as YAML. A model without GPUs runs on CPUs. */ -}}
{{- define "fsr.settings" -}}
{{- $model := .Values.model -}}
{{- $settings := dict -}}
{{- range $tier := list "ENCODER" "DECODER" }}
{{- $gpus := (index $.Values (lower $tier)).gpus }}
{{- $_ := set $settings (printf "FSR_%s_MODEL" $tier) $model.name }}
{{- $_ := set $settings (printf "FSR_%s_SERVED_NAME" $tier) $model.servedName }}
{{- $_ := set $settings (printf "FSR_%s_DEVICE" $tier) (ternary "cuda" "cpu" (gt (int $gpus) 0)) }}
{{- $_ := set $settings (printf "FSR_%s_DTYPE" $tier) ($model.dtype | default (ternary "fp16" "fp32" (gt (int $gpus) 0))) }}
{{- end }}
{{- with $model.clip }}
{{- $_ := set $settings "FSR_ENCODER_CLIP" . }}
{{- end }}
{{- if .Values.encoder.directIngress }}
{{- /* All of Ray's processes need these variables; they are those of services/fsr/encoder/serving/ingress.py. */ -}}
{{- $_ := set $settings "RAY_SERVE_ENABLE_DIRECT_INGRESS" "1" }}
{{- $_ := set $settings "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT" "21000" }}
{{- $_ := set $settings "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT" "22000" }}
{{- $_ := set $settings "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT" "22000" }}
{{- $_ := set $settings "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT" "23000" }}
{{- $_ := set $settings "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S" "5.0" }}
{{- else }}
{{- $_ := set $settings "FSR_ENCODER_INGRESS" "proxy" }}
{{- end }}
{{- if .Values.innerTls.enabled }}
{{- range $prefix, $authority := dict "GATEWAY_REPLICA" "CA" "ENCODER" "CLIENT_CA" "DECODER" "CLIENT_CA" }}
{{- $_ := set $settings (printf "FSR_%s_TLS_CERT" $prefix) "/etc/fsr/inner-tls/tls.crt" }}
{{- $_ := set $settings (printf "FSR_%s_TLS_KEY" $prefix) "/etc/fsr/inner-tls/tls.key" }}
{{- $_ := set $settings (printf "FSR_%s_TLS_%s" $prefix $authority) "/etc/fsr/inner-tls/ca.crt" }}
{{- end }}
{{- /* By it Serve's proxies and replicas open their ports with the certificate (services/fsr/encoder/serving/serve_ports.py). */ -}}
{{- $_ := set $settings "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" "fsr.encoder.serving.serve_ports.listen_as_told" }}
{{- $_ := set $settings "FSR_DECODER_HEALTH_PORT" "20060" }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- $_ := set $settings $name (ternary $value (toJson $value) (kindIs "string" $value)) }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{- /* Mount and volume of a tier's certificate for the other tiers. The volume takes the root and the tier. */ -}}
{{- define "fsr.innerTlsMount" -}}
- {name: inner-tls, mountPath: /etc/fsr/inner-tls, readOnly: true}
{{- end }}
{{- define "fsr.innerTlsVolume" -}}
- {name: inner-tls, secret: {secretName: {{ (index . 0).Release.Name }}-{{ index . 1 }}-inner-tls}}
{{- end }}

{{- /* Variables of Ray's containers. The root file system is read-only, and Ray and the libraries write into the home folder. */ -}}
{{- define "fsr.rayEnv" -}}
env:
  - {name: HOME, value: /tmp}
  # A proxy that died is replaced after three looks, by default ten seconds apart.
  - {name: RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S, value: "0.1"}
  - {name: RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S, value: "5"}
{{- end }}

{{- /* Whom the pods with a model run as. */ -}}
{{- define "fsr.user" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* Pods of a tier go to different nodes where there are such. */ -}}
{{- define "fsr.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "fsr.instance" . | nindent 8 }}
        app.kubernetes.io/part-of: fsr
    matchLabelKeys: [app.kubernetes.io/component]
{{- end }}
