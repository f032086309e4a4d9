{{- define "streamdetect.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 46 characters: with the suffixes of StatefulSet, pods and claims a name must not exceed 63. */}}
{{- define "streamdetect.fullname" -}}
{{- $name := include "streamdetect.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "streamdetect.selectorLabels" -}}
app.kubernetes.io/name: {{ include "streamdetect.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "streamdetect.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "streamdetect.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "streamdetect.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "streamdetect.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "streamdetect.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A standby never answers 200 on /readyz: with two replicas a rollout and a drain would wait for it for ever. */}}
{{- define "streamdetect.readinessPath" -}}
{{- default (ternary "/healthz" "/readyz" (gt (int .Values.replicas) 1)) .Values.probes.readiness.path -}}
{{- end -}}

{{/* The given settings, plus the paths of the files that the chart mounts. */}}
{{- define "streamdetect.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $kafka := default dict $config.kafka -}}
{{- if not (and $kafka.bootstrap_servers (or $kafka.topics $kafka.topic_pattern)) -}}
{{- fail "Set config.kafka.bootstrap_servers, and config.kafka.topics or config.kafka.topic_pattern." -}}
{{- end -}}
{{- $secret := .Values.kafkaSecret -}}
{{- if and $secret.existingSecret (not (or $secret.passwordKey $secret.caKey $secret.certKey $secret.keyKey)) -}}
{{- fail "kafkaSecret.existingSecret is set without keys. Set passwordKey, caKey, certKey or keyKey." -}}
{{- end -}}
{{- range $setting, $key := dict "password_file" $secret.passwordKey "ca_file" $secret.caKey "cert_file" $secret.certKey "key_file" $secret.keyKey -}}
{{- if $key -}}
{{- if not $secret.existingSecret -}}
{{- fail "kafkaSecret has keys but no existingSecret. Set existingSecret to the name of the Secret." -}}
{{- end -}}
{{- $kafka = set $kafka $setting (printf "/etc/streamdetect-kafka/%s" $key) -}}
{{- end -}}
{{- end -}}
{{- $config = set $config "kafka" $kafka -}}
{{- $config = set $config "checkpoint" (set (default dict $config.checkpoint) "path" "/var/lib/streamdetect/state") -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "streamdetect.kafkaPorts" -}}
{{- $ports := .Values.networkPolicy.kafkaPorts -}}
{{- if not $ports -}}
{{- range (default dict .Values.config.kafka).bootstrap_servers -}}
{{- $ports = append $ports (regexFind "[0-9]+$" . | int) -}}
{{- end -}}
{{- end -}}
{{- range $ports | uniq }}
- {protocol: TCP, port: {{ int . }}}
{{- end -}}
{{- end -}}
