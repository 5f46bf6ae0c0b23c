r"""The kube-style API without its I/O: resources, schemas, codecs, patches, selectors and texts.

| module | what it offers |
|---|---|
| `values` | JSON objects, strict decoding, equality, Go's quoting |
| `status` | `Status`, `ApiError` and one constructor per refusal |
| `resources` | `Resource`, `Catalog`, `BUILT_IN` |
| `discovery` | the documents under `/api` and `/apis` |
| `schema` | messages and fields of every kind; pruning, defaults, OpenAPI v2 and v3 |
| `bodies` | `decode_body`: JSON, YAML or protobuf → checked object; `encode_body` back |
| `protobuf`, `yaml_body` | the `k8s\0` envelope; YAML without surprises |
| `patch` | JSON patch, merge patch, strategic merge patch |
| `fieldsets`, `managed_fields` | sets of fields; updates and server-side apply with its conflicts |
| `selectors` | label and field selectors |
| `meta` | names, metadata of new and changed objects, resourceVersion and continue tokens |
| `validate` | what each kind must look like (RBAC rules themselves: `access.authz`) |
| `table` | the rows `kubectl get` prints |
| `negotiate` | Accept and Content-Type |

Everything is a pure function: no clock, no randomness, no store. Errors are `ApiError` with the
finished answer, or `Malformed` with a text.
"""
