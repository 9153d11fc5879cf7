"""The KServe v2 inference protocol (Open Inference Protocol): requests and answers as values, without an HTTP framework.

Sources: ``specification/protocol/inference_rest.md`` of kserve/open-inference-protocol; ``docs/predict-api/v2/required_api.md``
of kserve/kserve for parameters and tensor data; ``docs/protocol/extension_binary_data.md`` and
``docs/protocol/extension_classification.md`` of triton-inference-server/server.
"""
