-- Marks tasks as revoked. Each worker that receives a broadcast calls this script: only marks that are
-- new, or more than a minute old, are written and published.
-- KEYS[1] the revoked tasks, by time in seconds
-- KEYS[2] the tasks to end even if they run
-- ARGV    time in seconds, retention of marks in seconds, 1 to end running tasks, the channel, the ids
local FRESH = 60
local now, retention, terminate = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local marks = terminate and KEYS[2] or KEYS[1]
local new = {}
for at = 5, #ARGV do
  local id = ARGV[at]
  local since = redis.call('ZSCORE', marks, id)
  if not since or now - tonumber(since) > FRESH then
    redis.call('ZADD', KEYS[1], now, id)
    if terminate then
      redis.call('ZADD', KEYS[2], now, id)
    end
    new[#new + 1] = id
  end
end
for _, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - retention)
end
if #new > 0 then
  redis.call('PUBLISH', ARGV[4], cjson.encode({ ids = new, terminate = terminate }))
end
return #new
