{{- define "captrieve.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "captrieve.selector" . }}
{{- end }}

{{- define "captrieve.selector" -}}
app.kubernetes.io/name: captrieve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "captrieve.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- /* Fewest rights, for every container. */ -}}
{{- define "captrieve.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "captrieve.check" -}}
{{- if not .Values.gateway.image }}{{ fail "gateway.image is empty: name the image built from deploy/Dockerfile.gateway" }}{{ end -}}
{{- if not .Values.models.claim }}{{ fail "models.claim is empty: name a PersistentVolumeClaim that holds the models" }}{{ end -}}
{{- if and .Values.gpu.enabled (not .Values.engines.image) }}{{ fail "engines.image is empty: name the image built from deploy/Dockerfile.engines, or set gpu.enabled=false" }}{{ end -}}
{{- if not (or .Values.insecure (and .Values.tls.secret .Values.apiKeys.secret)) }}{{ fail "tls.secret or apiKeys.secret is empty: name both secrets, or set insecure=true where a mesh does their work" }}{{ end -}}
{{- end }}

{{- /* What Triton and the gateway both see. */ -}}
{{- define "captrieve.mounts" -}}
{{- if .Values.gpu.enabled -}}
- { name: models, mountPath: /models, readOnly: true }
{{- else -}}
- { name: stored, mountPath: /models, subPath: {{ .Values.models.folder }}, readOnly: true }
{{- end }}
- { name: scratch, mountPath: /tmp }
- { name: shared-memory, mountPath: /dev/shm }
{{- end }}
