-- Re-checks the status: a new run of the task may have stored another state since it was read.
local stored = redis.call('GET', KEYS[1])
local status = stored and string.match(stored, '^{%s*"status"%s*:%s*"([^"\\]*)"')
if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then
  return redis.call('DEL', KEYS[1])
end
return 0
