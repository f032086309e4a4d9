"""Option names of programs that pip cannot install, copied from their documentation (Elastic, versions 8.x and 9.x).

Sources: logstash-integration-kafka docs/input-kafka.asciidoc and output-kafka.asciidoc; logstash-output-elasticsearch
docs/index.asciidoc; beats libbeat/outputs/kafka/docs, filebeat/docs/inputs/input-kafka.asciidoc and input-filestream,
libbeat/processors; winlogbeat/docs/winlogbeat-options.asciidoc; Fleet's reference "Kafka output".
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KAFKA = """
bootstrap_servers client_dns_lookup client_id connections_max_idle_ms jaas_path kerberos_config metadata_max_age_ms
receive_buffer_bytes reconnect_backoff_ms request_timeout_ms retry_backoff_ms sasl_client_callback_handler_class
sasl_oauthbearer_token_endpoint_url sasl_oauthbearer_scope_claim_name sasl_login_callback_handler_class sasl_jaas_config
sasl_kerberos_service_name sasl_mechanism security_protocol send_buffer_bytes ssl_endpoint_identification_algorithm
ssl_key_password ssl_keystore_location ssl_keystore_password ssl_keystore_type ssl_truststore_location
ssl_truststore_password ssl_truststore_type
"""

LOGSTASH = {
    name: _names(options + " id enable_metric add_field tags type codec ecs_compatibility")
    for name, options in {
        "input kafka": _KAFKA
        + """
        auto_commit_interval_ms auto_create_topics auto_offset_reset check_crcs client_rack consumer_threads
        decorate_events enable_auto_commit exclude_internal_topics fetch_max_bytes fetch_max_wait_ms fetch_min_bytes
        group_id group_instance_id heartbeat_interval_ms isolation_level key_deserializer_class
        max_partition_fetch_bytes max_poll_interval_ms max_poll_records partition_assignment_strategy poll_timeout_ms
        session_timeout_ms topics topics_pattern value_deserializer_class
        """,
        "output kafka": _KAFKA
        + """
        acks batch_size buffer_memory compression_type key_serializer linger_ms max_request_size message_headers
        message_key metadata_fetch_timeout_ms partitioner reconnect_backoff_max_ms retries topic_id value_serializer
        """,
        "output elasticsearch": """
        action api_key bulk_path ca_trusted_fingerprint cloud_auth cloud_id compression_level custom_headers
        data_stream data_stream_auto_routing data_stream_dataset data_stream_namespace data_stream_sync_fields
        data_stream_type dlq_custom_codes dlq_on_failed_indexname_interpolation doc_as_upsert document_id
        healthcheck_path hosts http_compression ilm_enabled ilm_pattern ilm_policy ilm_rollover_alias index
        silence_errors_in_log manage_template parameters password path pipeline proxy routing ssl_certificate
        ssl_certificate_authorities ssl_enabled ssl_key ssl_verification_mode template template_api
        template_name template_overwrite timeout user version version_type
        """,
        "input beats": "port host include_codec_tag client_inactivity_timeout ssl_enabled ssl_certificate ssl_key "
        "ssl_certificate_authorities ssl_client_authentication enrich",
        "filter mutate": "remove_field convert copy gsub join lowercase merge coerce rename replace split strip "
        "update uppercase capitalize tag_on_failure add_tag remove_tag",
        "filter ruby": "code init path script_params tag_on_exception remove_field add_tag",
        "output stdout": "",
        "codec json": "charset target",
    }.items()
}

_BEATS_KAFKA = """
enabled hosts version username password sasl.mechanism topic topics key partition.hash.hash partition.hash.random
partition.hash.reachable_only headers client_id worker codec metadata max_retries backoff.init backoff.max bulk_max_size
bulk_flush_frequency timeout broker_timeout channel_buffer_size keep_alive compression compression_level
max_message_bytes required_acks ssl.enabled ssl.certificate_authorities ssl.certificate ssl.key ssl.verification_mode
"""

BEATS = {
    "output.kafka": _names(_BEATS_KAFKA),
    "outputs.default": _names(_BEATS_KAFKA + " type"),
    "output.elasticsearch": _names(
        """
        enabled hosts index indices pipeline pipelines api_key username password protocol path headers proxy_url worker
        compression_level escape_html max_retries bulk_max_size backoff.init backoff.max idle_connection_timeout
        timeout allow_older_versions ssl.enabled ssl.certificate_authorities ssl.certificate ssl.key
        """
    ),
    "input kafka": _names(
        """
        type id enabled hosts topics group_id client_id version initial_offset connect_backoff consume_backoff
        max_wait_time wait_close isolation_level fetch.min fetch.default fetch.max expand_event_list_from_field
        rebalance.strategy rebalance.timeout rebalance.max_retries rebalance.retry_backoff sasl.mechanism parsers
        username password ssl.enabled ssl.certificate_authorities tags fields processors publisher_pipeline.disable_host
        """
    ),
    "input filestream": _names(
        "type id enabled paths parsers encoding ignore_older close.on_state_change.inactive prospector.scanner "
        "tags fields processors publisher_pipeline.disable_host"
    ),
    "winlogbeat.event_logs": _names(
        "name event_id provider level ignore_older forwarded tags fields processors include_xml batch_read_size"
    ),
    "decode_json_fields": _names(
        "fields process_array max_depth target overwrite_keys expand_keys add_error_key document_id"
    ),
    "drop_fields": _names("fields ignore_missing when"),
    "add_host_metadata": _names("when.not.contains.tags netinfo.enabled cache.ttl geo.name replace_fields"),
    "ndjson": _names(
        "target overwrite_keys expand_keys add_error_key message_key document_id ignore_decoding_error"
    ),
}
