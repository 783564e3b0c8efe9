{{- define "nodenet.labels" -}}
app.kubernetes.io/name: nodenet
{{- end }}

{{- define "nodenet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-slim" .Chart.AppVersion) }}
{{- end }}

{{- /* A file of the chart, in the namespace of the values. */ -}}
{{- define "nodenet.namespaced" -}}
{{- $object := .context.Files.Get .file | fromYaml -}}
{{- $_ := set $object.metadata "namespace" .context.Values.namespace.name -}}
{{- if eq $object.kind "ServiceMonitor" -}}
{{- $_ := set $object.spec.namespaceSelector "matchNames" (list .context.Values.namespace.name) -}}
{{- end -}}
{{ toYaml $object }}
{{- end }}
