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
{{- if not (or .Values.insecure (and .Values.tls.secret (or .Values.apiKeys.secret .Values.tls.clientCa))) }}{{ fail "tls.secret or apiKeys.secret is empty: name both secrets (with tls.clientCa the first is enough), or set insecure=true where a mesh does their work" }}{{ end -}}
{{- if .Values.catalog.address }}
{{- if .Values.catalog.claim }}{{ fail "catalog.claim and catalog.address are both set: a gateway searches one catalogue" }}{{ end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) }}{{ fail "catalog.address: the network policy keeps the gateway from it, add a rule under networkPolicy.egress" }}{{ end -}}
{{- end }}
{{- range list "listen_address" "admin_address" "triton_address" "triton_shared_memory" "model_repository" "drain_seconds" "max_connection_age_seconds" "catalog" "catalog_password" "catalog_password_file" "insecure" "tls_certificate" "tls_key" "tls_client_ca" "api_keys" -}}
{{- if hasKey $.Values.gateway.settings . }}{{ fail (printf "gateway.settings.%s: the chart sets it by a value of its own, see values.yaml" .) }}{{ end -}}
{{- end -}}
{{- end }}

{{- /* What Triton and the gateway both see. */ -}}
{{- define "captrieve.mounts" -}}
{{- if .Values.gpu.enabled -}}
- { name: models, mountPath: /models, readOnly: true }
{{- else -}}
- { name: stored, mountPath: /models, subPath: {{ .Values.models.folder }}, readOnly: true }
{{- end }}
- { name: shared-memory, mountPath: /dev/shm }
{{- end }}

{{- define "captrieve.tls" -}}
- { name: CAPTRIEVE_TLS_CERTIFICATE, value: /tls/tls.crt }
- { name: CAPTRIEVE_TLS_KEY, value: /tls/tls.key }
{{- if .Values.tls.clientCa }}
- { name: CAPTRIEVE_TLS_CLIENT_CA, value: /tls/ca.crt }
{{- end }}
{{- end }}
