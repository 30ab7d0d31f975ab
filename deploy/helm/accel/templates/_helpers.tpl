{{- define "accel.name" -}}
{{- if contains "accel" .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-accel" (.Release.Name | trunc 34 | trimSuffix "-") }}{{- end -}}
{{- end }}

{{/* Labels that select: they never change. Call with (dict "root" $ "part" "gateway"). */}}
{{- define "accel.selector" -}}
app.kubernetes.io/name: accel
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "accel.labels" -}}
{{ include "accel.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "accel.image" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{/* Mi of a quantity that the schema let through. */}}
{{- define "accel.mi" -}}
{{- if hasSuffix "Gi" . -}}{{ mul (trimSuffix "Gi" . | int) 1024 }}{{- else -}}{{ trimSuffix "Mi" . | int }}{{- end -}}
{{- end }}

{{/* What a Triton pod may hold: its processes and /dev/shm, which counts as memory of the pod. */}}
{{- define "accel.tritonMemory" -}}
{{ add (include "accel.mi" .Values.triton.memory | int) (include "accel.mi" .Values.triton.sharedMemory | int) }}Mi
{{- end }}

{{- define "accel.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "accel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Spread over hosts and zones, as far as there are any. */}}
{{- define "accel.spread" -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "accel.selector" . | nindent 14 }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "accel.selector" . | nindent 8 }}
{{- end }}

{{- define "accel.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Resources of a pod that computes: Triton, and the job that builds for it. */}}
{{- define "accel.tritonResources" -}}
requests:
  cpu: {{ .Values.triton.cpu }}
  memory: {{ include "accel.tritonMemory" . }}
limits:
  cpu: {{ .Values.triton.cpu }}
  memory: {{ include "accel.tritonMemory" . }}
  {{- if eq .Values.profile "gpu" }}
  nvidia.com/gpu: {{ .Values.triton.gpus }}
  {{- end }}
{{- end }}

{{- define "accel.tritonPlace" -}}
{{- with .Values.triton.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq .Values.profile "gpu" }}
{{- with .Values.triton.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "accel.claim" -}}
{{ .Values.store.existingClaim | default (printf "%s-models" (include "accel.name" .)) }}
{{- end }}

{{/* Home, caches and temporary files of a container whose root cannot be written. */}}
{{- define "accel.scratchEnv" -}}
- {name: HOME, value: /tmp}
- {name: ACCEL_HOME, value: /tmp}
- {name: ACCEL_REPOSITORY, value: /models}
{{- end }}

{{- define "accel.tritonVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.triton.temporary }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.triton.sharedMemory }}}
{{- if eq .Values.store.kind "pvc" }}
- name: models
  persistentVolumeClaim: {claimName: {{ include "accel.claim" . }}}
{{- end }}
{{- end }}

{{/* What is built, and what is waited for. */}}
{{- define "accel.buildArgs" -}}
{{- if and (eq .Values.profile "gpu") (eq .Values.build.engine "auto") }}
- --target=auto
{{- end }}
{{- range .Values.models }}
- {{ . }}
{{- end }}
{{- end }}
