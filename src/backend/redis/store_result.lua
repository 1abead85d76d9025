-- Stores the result of a task and publishes it. The first terminal result wins. A success is final; a
-- result of a message that was received later replaces a failure or a revocation.
-- KEYS[1] the task's key, and Celery's channel of the same name
-- ARGV    document, retention in seconds (0: forever), reply channel ('': none), time when the message
--         was received ('': redelivered, or a later attempt)
local terminal = { SUCCESS = true, FAILURE = true, REVOKED = true }

local function is_older(document, received)
  if received == '' then
    return false
  end
  local decoded, fields = pcall(cjson.decode, document)
  local done = decoded and type(fields) == 'table' and fields['date_done']
  -- Both are UTC in the same format, so a text comparison suffices.
  return type(done) == 'string' and done < received
end

local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'string' then
  -- Celery writes the status first. Matching only the start is cheap and works at any nesting depth.
  local status = string.match(stored, '^{%s*"status"%s*:%s*"([^"\\]*)"')
  if not status then
    local decoded, document = pcall(cjson.decode, stored)
    status = decoded and type(document) == 'table' and document['status']
  end
  if terminal[status or ''] and (status == 'SUCCESS' or not is_older(stored, ARGV[4] or '')) then
    return 0
  end
end

if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('PUBLISH', ARGV[3], ARGV[1])
end
return 1
